"""Image files without labels: 'images:PATH', of whatever lies at any depth below a folder."""

from vit_jax.sources import Splits
from vit_jax.sources.folder import (
  Index,
  PathList,
  Walk,
  folder_root,
  index_splits,
  indexed,
  pass_over_beside,
  pass_over_images,
  split_folders,
)


def splits(kind: str, path: str) -> Splits:
  """The splits of all images below a folder, perhaps below folders for splits.

  Files are judged as by 'folder:'. Without a folder for validation a tenth of 'train' is held out.
  """
  return index_splits(indexed(folder_root(path), kind, make_index))


def make_index(root: bytes) -> Index:
  """The index of a folder, by a walk through all of it."""
  walk, paths, counts = Walk(root), PathList(), {}
  folders = split_folders(walk)
  for split, folder in folders.items():
    before = len(paths)
    for images in walk.images_below(folder):
      paths.add(images)
    counts[split] = len(paths) - before
  walk.check_links()
  pass_over_beside(walk, folders)
  if b'' not in folders.values():
    pass_over_images(walk, b'', 'beside the folders of splits')
  return Index(paths.files(root, None), (), counts, walk.folders, walk.passed_over)
