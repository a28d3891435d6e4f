"""What must harm nobody else: a module that exits when it is imported."""

raise SystemExit("no licence found")


class Model:
    """A model that can be listed, but not imported."""
