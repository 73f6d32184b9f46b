"""What runs in an engine's own environment: `main.py`, and a file for each engine.

`main.py` imports an engine's file. That file needs nothing but Python 3.10 and the engine's
packages, and defines

    versions()                            packages and their versions
    prepare(checkpoint, folder, options)  convert a Hugging Face folder to the engine's own format
                                          (or, of variants "as-is", a GGUF file)
    load(folder, options, threads)        the loaded engine, an object with

        weight_bytes    read for each token
        kv_item_bytes   of one number in the key/value cache
        conditions      what a reader must know: flags, and what is estimated
        generate(prompts, new_tokens, tick)
                        token ids of each sequence, chosen greedily, the end-of-text token ignored;
                        calls `tick()` whenever every sequence has got one token, or `tick(seconds)`
                        with the time on the clock of `time.perf_counter` at which that happened
        answer_all(prompts, new_tokens, at_once)
                        the same tokens of many prompts, of which `at_once` are answered at the
                        same time; for `requests` alone, of engines with a batch that others join
        logits(ids, tail)
                        [tail, vocab] logits of the last `tail` ids of a sequence; called with a
                        longer sequence, or another one, an engine computes what it has not kept.
                        `generate` is not called any more. Engines that the library itself runs
                        are measured through it and need none
        own()           the engine's own figures for the last `generate`, in our units, or {}
"""
