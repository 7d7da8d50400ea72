"""Where the made-up layer of the fixture `layer` has its phases."""

N, PLATEAU, DECAY, KAPPA = 512, 24, 150, 0.4
OF_PHASES = ("phases", "power-law", "deviation")
