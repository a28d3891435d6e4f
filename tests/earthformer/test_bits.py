"""Two processes with the same work give the same bits: nothing in a run depends on the speed of the machine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import earthformer

_THREE_STEPS = """
import hashlib, torch
from earthformer.model import Earthformer
torch.manual_seed(0)
shape = (4, 32, 32, 1)
model = Earthformer(shape, shape, base_units=32, enc_depth=[1, 1], dec_depth=[1, 1], num_global_vectors=4, num_heads=4)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
for _ in range(3):
    optimizer.zero_grad()
    torch.nn.functional.mse_loss(model(torch.randn(2, *shape)), torch.randn(2, *shape)).backward()
    optimizer.step()
with torch.no_grad():
    forecast = model.eval()(torch.randn(1, *shape))
tensors = [*model.state_dict().values(), forecast]
print(hashlib.sha256(b"".join(t.detach().contiguous().numpy().tobytes() for t in tensors)).hexdigest())
"""


def test_training_is_bit_identical_across_processes() -> None:
    command = [sys.executable, "-c", _THREE_STEPS]
    # At the same time, so that each disturbs the other's timings.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    digests = [process.communicate(timeout=240)[0].strip() for process in running]
    assert len(digests[0]) == 64 and digests[0] == digests[1]


def test_no_module_of_the_library_reads_a_clock() -> None:
    for path in Path(earthformer.__file__).parent.rglob("*.py"):
        assert not re.search(r"^\s*(import|from) (time|timeit)\b|torch\.utils\.benchmark", path.read_text(), re.M), path


def test_importing_a_model_imports_only_what_it_needs() -> None:
    code = (
        "import sys, earthformer.model; found = {n for n in sys.modules if n.startswith('earthformer.')}; "
        "assert not any('prediff' in n for n in found) and not found & {'earthformer.' + n for n in "
        "('pictures', 'reference', 'upstream', 'aux_model')}, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
