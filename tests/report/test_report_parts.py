from interpretable_training.report import parts
from interpretable_training.report.journal import Journal, read_journal


def test_curves_run_over_steps_where_an_epoch_has_several_looks(tmp_path):
    journal = Journal(tmp_path)
    for step in (5, 10, 15):
        journal.write("values", epoch=step // 10, step=step, stage="fit", values={"xai/m/x": float(step)})
        journal.write("values", epoch=step // 10, step=step, stage="test", values={"test/xai/m/x": 7.0})
    record = read_journal(tmp_path)
    axis = parts.Axis(record)
    assert axis.name == "step"
    (chart,) = parts.metric_charts(record, axis)
    assert chart["lines"] == [{"label": "m", "points": [(5, 5), (10, 10), (15, 15)]}]  # without those of the test
    assert parts.final_tables(record) == [{"title": "test", "head": ["", "x"], "rows": [["m", 7.0]]}]


def test_an_alarm_shows_who_raised_it_beside_those_who_did_not(tmp_path):
    journal = Journal(tmp_path)
    for epoch, (a, b) in enumerate([(0.1, 0.2), (0.9, 0.3), (0.95, 0.4)]):
        when = {"epoch": epoch, "step": epoch, "stage": "fit"}
        values = {"xai/m/alarm/alike": a, "xai/n/alarm/alike": b, "xai/m/alarm/border": 0.1, "xai/m/insertion": 1.0}
        journal.write("values", **when, callback="ExplanationAlarms", values=values)
        if a > 0.8:
            journal.write("alarm", **when, name="xai/m/alarm/alike", value=a, threshold=0.8, message=f"m: {a}")
    record = read_journal(tmp_path)
    (alarm,) = parts.alarms(record, parts.Axis(record))
    assert alarm["raised"] == [{"message": "m: 0.95", "count": 2, "first": 1}]
    lines = [
        {"label": "m", "points": [(0, 0.1), (1, 0.9), (2, 0.95)]},
        {"label": "n", "points": [(0, 0.2), (1, 0.3), (2, 0.4)]},
    ]
    assert alarm["chart"] == {"title": "alike", "lines": lines, "thresholds": [0.8]}
    titles = [chart["title"] for chart in parts.metric_charts(record, parts.Axis(record))]
    assert titles == ["alarm/border", "insertion"]  # the one that was raised is shown once


def test_drift_and_costs_add_up(tmp_path):
    journal = Journal(tmp_path)
    for epoch, value in enumerate((0.5, 1.0)):
        rows = [
            {"id": i, "previous": {"similarity": value - 0.1 * i} if epoch else None, "first": {}} for i in range(2)
        ]
        journal.write("drift", epoch=epoch, step=epoch, method="m", rows=rows)
        for callback, seconds in (("A", 1.0), ("B", 3.0)):
            values = {"xai/seconds": seconds, "xai/share_of_epoch": seconds / 40, "xai/megabytes": 0.25}
            journal.write("values", epoch=epoch, step=epoch, callback=callback, values=values)
    record = read_journal(tmp_path)
    charts, own = parts.drift(record, parts.Axis(record))
    title = "similarity to the previous"
    assert charts == [{"title": title, "facts": None, "lines": [{"label": "m", "points": [(1, 0.95)]}]}]
    assert own == {"m": {"0": {title: [(1, 1.0)]}, "1": {title: [(1, 0.9)]}}}
    cost = parts.costs(record, parts.Axis(record))
    assert cost["rows"] == [["A", 2.0, "2.5%", 0.5], ["B", 6.0, "7.5%", 0.5]]
    assert (cost["seconds"], cost["share"]) == (8.0, "10.0%")


def test_images_for_which_a_metric_is_not_defined_are_said_beside_its_curve(tmp_path):
    journal = Journal(tmp_path)
    for epoch, left in enumerate((4, 2)):
        values = {"xai/m/energy": 3.0, "xai/m/energy/invalid": left, "xai/m/insertion": 1.0, "xai/m/on_cue": 2.0}
        journal.write("values", epoch=epoch, step=epoch, values=values)
    record = read_journal(tmp_path)
    charts = parts.metric_charts(record, parts.Axis(record))
    assert [chart["title"] for chart in charts] == ["on_cue", "energy", "insertion"]  # first those that say where
    assert [chart["undefined"] for chart in charts] == [None, 4, None]


def test_a_quantity_of_the_training_has_one_line_per_split(tmp_path):
    journal = Journal(tmp_path)
    values = {"val/loss": 1.0, "train/loss": 2.0, "train/loss_step": 9.0, "train/loss_epoch": 2.0, "lr": 0.1}
    journal.write("training", epoch=0, step=0, values={**values, "val_acc": 0.5})
    record = read_journal(tmp_path)
    charts = parts.training_charts(record, parts.Axis(record))
    found = {chart["title"]: [(line["label"], line["points"][0][1]) for line in chart["lines"]] for chart in charts}
    assert found == {"loss": [("train", 2.0), ("val", 1.0)], "lr": [("lr", 0.1)], "acc": [("val", 0.5)]}


def test_names_of_methods_may_hold_slashes_where_maps_tell_of_them(tmp_path):
    journal = Journal(tmp_path)
    journal.write("drift", epoch=0, step=0, method="a/b", rows=[])
    record = read_journal(tmp_path)
    keys = ["xai/a/b/insertion", "test/xai/c/insertion", "xai/seconds", "loss", "xai/c/alarm/alike"]
    found = {keys[0]: ("a/b", "insertion"), keys[1]: ("c", "insertion"), keys[4]: ("c", "alarm/alike")}
    assert parts.split_keys(record, keys) == found
