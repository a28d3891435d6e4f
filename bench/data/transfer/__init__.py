"""Transfer and verification of files: HTTP, archives, manifests, paths."""
