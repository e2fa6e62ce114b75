"""Settings of all tests."""

from hypothesis import settings

settings.register_profile("untimed", deadline=None)  # a limit on seconds would test the machine
settings.load_profile("untimed")
