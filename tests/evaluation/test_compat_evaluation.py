"""Names of torch that evaluation relies on though they are not promised."""

import torch.distributed as dist

from interpretable_training.evaluation._compat import default_store


def test_default_store_adds_sets_and_checks(tmp_path):
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        results = default_store()
        names = [name for name in ("add", "set", "check") if not callable(getattr(results, name, None))]
        assert not names, f"torch.distributed's default store has lost {names}: see evaluation/_compat.py"
        assert (results.add("key", 1), results.add("key", 1), results.add("key", 0)) == (1, 2, 2)
        results.set("stopped", "0")
        assert results.check(["stopped"])
        assert not results.check(["never"])
    finally:
        dist.destroy_process_group()
