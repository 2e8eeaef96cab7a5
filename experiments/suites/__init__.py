"""What `experiments.benchmark` measures, one suite a file: ``run(rounds, steps, threads) -> results``, ``table(results)``.

A suite is loaded once it is chosen, before anything else loads jax or torch, so that it may set the environment of both.
"""
