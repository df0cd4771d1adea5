"""Where training pictures come from; one reader a file, each returning (images, captions or None)."""
