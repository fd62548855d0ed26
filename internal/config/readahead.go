package config

import (
	"fmt"
	"time"
)

// A start that takes longer waits for something else than its disk.
const (
	defaultRecordTime = 30 * time.Second
	maxRecordTime     = 10 * time.Minute
)

// ReadAhead is about reading ahead what the start of an image reads from a layer disk.
type ReadAhead struct {
	// Enabled reads ahead.
	Enabled bool `toml:"enabled"`
	// Workers are the reads that are under way at once for one start.
	Workers int `toml:"workers"`
	// AtOnce is the number of starts that are read ahead for at once.
	AtOnce int `toml:"at_once"`
	// Rate in bytes a second of all together; 0 is no limit.
	Rate int64 `toml:"rate"`
	// MemoryShare of the memory that is available may be filled for one start.
	MemoryShare float64 `toml:"memory_share"`
	// ListsDirectory has access lists; empty is <root>/access-lists.
	ListsDirectory string `toml:"lists_directory"`
	// RecordFirstStart records what the first start of an image reads that has no list.
	RecordFirstStart bool `toml:"record_first_start"`
	// RecordTime is how long that goes on.
	RecordTime Duration `toml:"record_time"`
}

func defaultReadAhead() ReadAhead {
	return ReadAhead{Enabled: true, Workers: 16, AtOnce: 2, MemoryShare: 0.5, RecordTime: Duration(defaultRecordTime)}
}

// check names every key whose value cannot be used.
func (h ReadAhead) check() []error {
	var errs []error
	refuse := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("read_ahead.%s: %w", key, fmt.Errorf(format, args...)))
	}
	// maxWorkers is readahead.MaxWorkers.
	const maxWorkers, maxAtOnce, minRate = 64, 64, 1 << 20
	if h.Workers < 1 || h.Workers > maxWorkers {
		refuse("workers", "%d is not from 1 to %d", h.Workers, maxWorkers)
	}
	if h.AtOnce < 1 || h.AtOnce > maxAtOnce {
		refuse("at_once", "%d is not from 1 to %d", h.AtOnce, maxAtOnce)
	}
	if h.Rate != 0 && h.Rate < minRate {
		refuse("rate", "%d bytes a second are less than %d; 0 is no limit", h.Rate, minRate)
	}
	if !(h.MemoryShare > 0 && h.MemoryShare <= 1) {
		refuse("memory_share", "%g is not more than 0 and up to 1", h.MemoryShare)
	}
	if d := h.ListsDirectory; d != "" && !cleanAbs(d) {
		refuse("lists_directory", "%q is not a clean absolute path; \"\" is <root>/access-lists", d)
	}
	if t := h.RecordTime.Std(); t < time.Second || t > maxRecordTime {
		refuse("record_time", "%s is not from 1s to %s", t, maxRecordTime)
	}
	return errs
}
