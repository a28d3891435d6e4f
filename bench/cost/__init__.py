"""The cost of a model: parameters, multiply-adds, latency and memory."""

from bench.cost.counting import Cost, count_model
from bench.cost.speed import Speed, measure_speed

__all__ = ["Cost", "Speed", "count_model", "measure_speed"]
