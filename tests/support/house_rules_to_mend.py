"""Exceptions to the rules of `test_house_rules.py`. The list may only become shorter."""

LONG_NAMES_TO_MEND = {  # test modules with names of more than 65 characters
    "tests/callbacks/test_alarms.py",
    "tests/callbacks/test_foreign_projects.py",
    "tests/callbacks/test_observer_state.py",
    "tests/callbacks/test_randomization_callback.py",
    "tests/callbacks/test_training_curves.py",
    "tests/callbacks/test_what_is_shown.py",
    "tests/callbacks/test_which_images.py",
}
