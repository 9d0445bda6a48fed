"""How good a circuit is: faithfulness, its areas, k*, random controls, and whether the behaviour is there at all.

Everything here is numpy; a model is seen only through `measuring.Measure`. `judging.judge` composes the parts.
"""
