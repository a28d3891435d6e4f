"""Lightning callbacks: signals, divergence, selection, progress, resuming."""
