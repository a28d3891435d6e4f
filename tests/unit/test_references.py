"""What references take from the harness: the split they are fitted on, the task's own numbers, the count of fallbacks."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import bench
from bench.config import compose
from bench.data.storms import write_storms
from bench.errors import ConfigError
from bench.records.schema import SCHEMA_VERSION, RunRecord, migrated
from bench.running.pipeline import run
