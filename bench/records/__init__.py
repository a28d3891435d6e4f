"""Records: one immutable JSON file per run; read and written without torch."""

from bench.records.provenance import code_state, hardware, versions
from bench.records.schema import RunRecord, TrainingSummary
from bench.records.store import read_record, read_records, write_record
from bench.records.uncertainty import Comparison, compare, interval, why_no_interval

__all__ = [
    "Comparison",
    "RunRecord",
    "TrainingSummary",
    "code_state",
    "compare",
    "hardware",
    "interval",
    "read_record",
    "read_records",
    "versions",
    "why_no_interval",
    "write_record",
]
