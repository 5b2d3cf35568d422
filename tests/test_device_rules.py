"""Rules for devices: tensors are made where their inputs are, and loops do not wait for the device."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "interpretable_training"
ROOMS = ("attribution", "metrics", "regularization", "models", "tasks")
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
MAKE = {"zeros", "ones", "empty", "full", "arange", "linspace", "eye", "rand", "randn", "randint", "randperm", "tensor"}
PLACED = {"to", "type_as", "as_tensor", "Parameter", "add_state", "register_buffer"}  # which get a tensor to its device
WAITS = {"item", "cpu", "tolist", "numpy"}
PLANS = {  # small plans on the CPU, which callers move: orders, weights, kernels, regions, boxes
    "attribution/core/map_operations.py blur",
    "attribution/expected_grad_cam.py draw_paths",
    "attribution/expected_gradients.py _draw",
    "attribution/integrated_gradients.py _points",
    "attribution/occlusion.py attribute",
    "attribution/smooth_grad.py attribute",
    "metrics/core/inputs.py padded_boxes",
    "metrics/core/perturbation.py rise_kernel",
    "metrics/curves.py counts",
    "metrics/network_dissection.py concepts_of",
    "metrics/network_dissection.py _concepts",
    "metrics/network_dissection.py measure_units",
    "metrics/region_effects.py grid_regions",
    "metrics/region_effects.py regions",
    "metrics/sanity/parameter_randomization.py _check",
    "models/ca_stream.py get_extra_state",
    "tasks/detection.py outline",
    "tasks/detection.py reference",
}
WAITING = {
    "attribution/core/ranges.py check_ranges",  # numbers among the options, once
    "metrics/network_dissection.py measure_units",  # thresholds of a whole data set are kept on the CPU
}


def functions_of(tree):
    """Yield node -> name of the innermost function around it."""
    around = {}

    def visit(node, name):
        for child in ast.iter_child_nodes(node):
            inner = child.name if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)) else name
            around[child] = inner
            visit(child, inner)

    visit(tree, "")
    return around


def tensors_without_place(path):
    """Return (function, line) of each tensor that is made on the CPU and does not leave it in the same statement."""
    tree = ast.parse(path.read_text())
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    around, found = functions_of(tree), []
    for node in ast.walk(tree):
        called = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if not (called and node.func.attr in MAKE and isinstance(node.func.value, ast.Name)):
            continue
        if node.func.value.id != "torch" or {k.arg for k in node.keywords} & {"device", "generator"}:
            continue
        above, node_above = [], node
        while node_above in parents and not isinstance(node_above, ast.stmt):
            node_above = parents[node_above]
            above.append(node_above)
        names = {n.func.attr for n in above if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)}
        if not names & PLACED:
            found.append((around[node], node.lineno))
    return found


def waits_in_loops(path):
    """Return (function, line) of each call in a loop that waits for the device."""
    tree, found = ast.parse(path.read_text()), set()
    around = functions_of(tree)
    for loop in ast.walk(tree):
        if isinstance(loop, (ast.For, ast.While)):
            for node in (n for part in loop.body for n in ast.walk(part)):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in WAITS:
                    found.add((around[node], node.lineno))
    return sorted(found)


def names_of(rule):
    """Return "file function" of each place that a rule finds."""
    return {f"{path.relative_to(ROOT).as_posix()} {name}" for path in FILES for name, _ in rule(path)}


@pytest.mark.parametrize(
    ("rule", "allowed"), [(tensors_without_place, PLANS), (waits_in_loops, WAITING)], ids=["place", "waits"]
)
def test_places_are_those_listed(rule, allowed):
    assert names_of(rule) == allowed


def test_rules_find_what_they_are_for(tmp_path):
    file = tmp_path / "code.py"
    file.write_text(
        "def f(x):\n    a = torch.zeros(3)\n    b = torch.ones(3).to(x)\n    c = torch.ones(3, device=x.device)\n"
        "    for i in x:\n        i.item()\n    return a, b, c, x.item()\n"
    )
    assert tensors_without_place(file) == [("f", 2)]
    assert waits_in_loops(file) == [("f", 6)]
