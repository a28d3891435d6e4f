"""The flags that all verbs `earthbench data fetch` have in common."""

from __future__ import annotations

from pydantic import Field

from bench.data.transfer.http import RetryPolicy
from bench.data.verbs import DataVerb


class FetchVerb(DataVerb):
    """A verb that downloads, and gives up after some tries without progress."""

    tries: int = Field(5, ge=1, description="tries in a row without a new byte before giving up")
    timeout: float = Field(60.0, gt=0, description="seconds without a byte before a try counts as failed")

    @property
    def policy(self) -> RetryPolicy:
        """Returns how often and how long downloads are tried."""
        return RetryPolicy(tries=self.tries, timeout_s=self.timeout)
