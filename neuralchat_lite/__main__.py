"""`python -m neuralchat_lite` is the command `neuralchat-lite`."""

from neuralchat_lite.cli.app import main

if __name__ == "__main__":
    main()
