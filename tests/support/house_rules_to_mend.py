"""Exceptions to the rules of `test_house_rules.py`. Each list may only become shorter."""

NAMES_TO_MEND = {  # public names with two definitions
    "Options",
    "Range",
    "around",
    "box_study",
    "candidates",
    "check_scores",
    "default_metrics",
    "distribution",
    "draw",
    "explain",
    "fingerprint",
    "names_of",
    "report",
    "say",
    "share",
    "to_csv",
    "to_text",
    "whole",
}

IMPORTS_TO_MEND = {  # files and the room that they should not import
    ("interpretable_training/data/cmapss.py", "attribution"),
    ("interpretable_training/evaluation/trainer.py", "cli"),
    ("interpretable_training/metrics/__init__.py", "evaluation"),
    ("interpretable_training/modules/class_paths.py", "attribution"),
}

PRIVATE_USES_TO_MEND = {  # files that use private names of other libraries
    "interpretable_training/attribution/core/relevance.py",
    "interpretable_training/evaluation/ranks.py",
    "interpretable_training/modules/plain_module.py",
}

TEST_IMPORTS_TO_MEND = {  # test modules that import another test module
    "tests/callbacks/test_guided_gradient_regularization.py",
}

LONG_NAMES_TO_MEND = {  # test modules with names of more than 65 characters
    "tests/attribution/test_engine.py",
    "tests/attribution/test_engine_models.py",
    "tests/callbacks/test_alarms.py",
    "tests/callbacks/test_foreign_projects.py",
    "tests/callbacks/test_observer_state.py",
    "tests/callbacks/test_randomization_callback.py",
    "tests/callbacks/test_training_curves.py",
    "tests/callbacks/test_what_is_shown.py",
    "tests/callbacks/test_which_images.py",
    "tests/cli/test_files_execute_nothing.py",
    "tests/data/test_cmapss_data.py",
    "tests/data/test_drawing.py",
    "tests/data/test_engines_stopped.py",
    "tests/data/test_epochs.py",
    "tests/data/test_imagenet_data.py",
    "tests/data/test_loaders.py",
    "tests/data/test_pictures.py",
    "tests/evaluation/test_evaluate.py",
    "tests/evaluation/test_evaluate_command.py",
    "tests/evaluation/test_evaluate_errors.py",
    "tests/evaluation/test_table.py",
    "tests/metrics/test_invariance_edges.py",
    "tests/metrics/test_metric_states.py",
    "tests/metrics/test_perturb.py",
    "tests/metrics/test_px_ap.py",
    "tests/metrics/test_randomization.py",
    "tests/metrics/test_randomized_networks.py",
    "tests/metrics/test_road.py",
    "tests/metrics/test_similarity.py",
    "tests/modules/test_ca_stream_classifier.py",
    "tests/modules/test_guided_gradient_classifier.py",
    "tests/modules/test_regressor.py",
    "tests/modules/test_regressor_numbers.py",
    "tests/recipes/test_box_study.py",
    "tests/recipes/test_ca_stream.py",
    "tests/recipes/test_cmapss.py",
    "tests/recipes/test_cmapss_tables.py",
    "tests/recipes/test_sanity_checks.py",
    "tests/recipes/test_sanity_pages.py",
    "tests/recipes/test_trained_once.py",
    "tests/sweeps/test_sweep_file.py",
    "tests/sweeps/test_sweep_study.py",
}
