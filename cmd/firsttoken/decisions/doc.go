// Package decisions makes a page of figures and plots of decision records: what was
// chosen or would have been, what was served, and how right the estimates were.
package decisions
