"""Hugging Face models as residual stream, activations and weights; floors above see no module of theirs.

`families` one record per architecture · `hub` ids to folders · `loading` folders to models, or a refusal ·
`anatomy` where the parts are · `probes` does the closed form hold · `adapter` all of it under one name ·
`checkpoints` a series of models · `patching` the slow engine that serves every layer and architecture.
"""
