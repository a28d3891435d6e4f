"""The motion of N-body MNIST, computed number by number."""

from __future__ import annotations

import math


def plain_motion(x, v, sizes, frames=20, r=0, mass=1.0, sub_steps=5, canvas=128):
    """Returns states and energies of each frame of one sequence, from the specification, number by number."""
    x, v = [list(row) for row in x], [list(row) for row in v]
    d, g = 10.0, 0.05
    states, energies = [], []
    for step in range(frames * sub_steps):
        if step % sub_steps == 0:
            states.append(([list(row) for row in x], [list(row) for row in v]))
            kinetic = sum(mass * s * s / 2 for row in v for s in row)
            potential = 0.0
            for i in range(len(x)):
                for j in range(i):
                    s = (x[i][0] - x[j][0]) ** 2 + (x[i][1] - x[j][1]) ** 2 + d * d
                    u = {0: math.sqrt(s), 1: math.log(s) / 2, 2: -1 / math.sqrt(s)}[r]
                    potential += g * mass * mass * u
            energies.append(kinetic + potential)
        pulls = []
        for i in range(len(x)):
            pull = [0.0, 0.0]
            for j in range(len(x)):
                s = (x[i][0] - x[j][0]) ** 2 + (x[i][1] - x[j][1]) ** 2 + d * d
                for axis in range(2):
                    pull[axis] += g * mass * (x[j][axis] - x[i][axis]) * s ** (-(r + 1) / 2)
            pulls.append(pull)
        for i in range(len(x)):
            for axis in range(2):
                v[i][axis] = min(max(v[i][axis] + pulls[i][axis], -2), 2)
                x[i][axis] += v[i][axis]
                centre = x[i][axis] + sizes[i][axis] / 2
                if centre < 10 or centre > canvas - 10:
                    x[i][axis] = (10 if centre < 10 else canvas - 10) - sizes[i][axis] / 2
                    v[i][axis] = -v[i][axis]
    return states, energies
