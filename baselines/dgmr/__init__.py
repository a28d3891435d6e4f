"""DGMR, a deep generative model of radar: its networks and how they are trained against each other."""
