"""An image file on its way to an array: decoding, transforms, augmentation."""
