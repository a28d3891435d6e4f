"""How bytes come and are trusted: HTTP, archives, manifests, paths."""
