"""Mean squared and mean absolute error."""
