"""Exceptions to the rules of `test_house_rules.py`. Each list may only become shorter."""

NAMES_TO_MEND = {  # public names with two definitions
}

IMPORTS_TO_MEND = {  # files and the room that they should not import
    ("interpretable_training/data/cmapss.py", "attribution"),
    ("interpretable_training/evaluation/trainer.py", "cli"),
    ("interpretable_training/metrics/__init__.py", "evaluation"),
    ("interpretable_training/modules/class_paths.py", "attribution"),
}

PRIVATE_USES_TO_MEND = {  # files that use private names of other libraries
    "interpretable_training/attribution/core/relevance.py",
}

TEST_IMPORTS_TO_MEND = {  # test modules that import another test module
}

LONG_NAMES_TO_MEND = {  # test modules with names of more than 65 characters
    "tests/attribution/test_engine.py",
    "tests/attribution/test_engine_models.py",
    "tests/data/test_loaders.py",
}
