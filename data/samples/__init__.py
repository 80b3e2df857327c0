"""The bundled recording and its labels: simulated from a street this project draws itself."""
