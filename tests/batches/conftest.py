from support.metric_fixtures import *  # noqa: F403 (fixtures)
