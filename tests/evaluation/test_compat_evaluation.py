"""Names of torch that evaluation relies on though they are not promised."""

import torch.distributed as dist

from interpretable_training.evaluation._compat import default_store


def test_default_store_adds_sets_and_checks(tmp_path):
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        found = default_store()
        names = [name for name in ("add", "set", "check") if not callable(getattr(found, name, None))]
        assert not names, f"torch.distributed's default store has lost {names}: see evaluation/_compat.py"
        assert (found.add("key", 1), found.add("key", 1), found.add("key", 0)) == (1, 2, 2)
        found.set("stopped", "0")
        assert found.check(["stopped"])
        assert not found.check(["never"])
    finally:
        dist.destroy_process_group()
