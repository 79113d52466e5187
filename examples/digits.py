"""Make your own model cheaper: an MLP that reads scikit-learn's handwritten digits."""

import torch
from sklearn.datasets import load_digits
from torch import nn

import trimtab as tt


def digits() -> tuple[nn.Module, tt.Task]:
    x, y = load_digits(return_X_y=True)
    x, y = torch.tensor(x, dtype=torch.float32) / 16, torch.tensor(y)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, select, verify = ((x[i], y[i]) for i in order.split([897, 300, 600]))
    task = tt.Task.of("digits", train=train, select=select, verify=verify, labels=tuple("0123456789"))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    # A fixed precision: "auto" takes what is faster at the moment, and each process should make the same model.
    return tt.fit(model, task, tt.Fit(epochs=20, lr=2e-3, precision="fp32")), task


if __name__ == "__main__":
    model, task = digits()
    result = tt.optimize(model, task, target=tt.Target("cpu"), goal=tt.Goal("latency_ms", keep=0.99))
    print(result.verdict.word, "-", result.verdict.reason)
    print("Artifact:", result.path)
