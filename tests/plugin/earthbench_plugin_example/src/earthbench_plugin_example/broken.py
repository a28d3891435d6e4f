"""What must harm nobody else: a module that exits when it is imported."""

raise SystemExit("no licence found")
