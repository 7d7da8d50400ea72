"""The science: arrays in, frozen results out. Knows neither files nor models nor plots."""
