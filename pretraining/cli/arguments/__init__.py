"""The flags of each program, one file per program or group of flags."""
