"""A model behind HTTP: `vit serve` opens it, batches what waits, and answers."""
