"""Skill of the Nino3.4 index."""
