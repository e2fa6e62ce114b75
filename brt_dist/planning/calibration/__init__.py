"""What this machine can do, measured in minutes: `brt plan --calibrate`."""
