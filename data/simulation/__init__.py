"""From pictures to events: scenes, the sensor that looks at them, frames put between frames."""
