package loopdev

// CrashAt has f called between all steps.
func (d *Driver) CrashAt(f func(step string)) { d.files.crash = f }
