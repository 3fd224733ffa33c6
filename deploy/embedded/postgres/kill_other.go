//go:build !linux

package postgres

// killBackends has no counterpart here: backends end when they notice.
func killBackends(int) {}
