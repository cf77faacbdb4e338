"""Files of scans, label maps and points: reading them and writing them."""
