"""What `experiments.benchmark` measures, one suite a file with two functions:

    run(rounds, steps, threads) -> results      table(results) -> text

A suite is loaded once it is chosen, before anything else loads jax or torch, so it may set the environment of both.
"""
