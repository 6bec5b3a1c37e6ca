"""Example trainers for the embedded AMT: small scikit-learn models on data sets that come with it.

They follow the script-mode contract, so they are also examples of what a training script needs: read the
hyperparameters from the command line, print metrics, save the model to ``SM_MODEL_DIR``.
"""
