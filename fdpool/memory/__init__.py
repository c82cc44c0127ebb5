"""Objects as they travel: pickled, with their handles beside them and their big buffers in a memfd."""
