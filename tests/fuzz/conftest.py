"""Fuzzing: a few examples in the default suite, thousands in `tox -e fuzz` (EARTHBENCH_FUZZ_EXAMPLES)."""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("fuzz", max_examples=int(os.environ.get("EARTHBENCH_FUZZ_EXAMPLES", "20")), deadline=None)
if "EARTHBENCH_FUZZ_EXAMPLES" in os.environ:
    settings.load_profile("fuzz")
