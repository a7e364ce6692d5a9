// Package spelling says how far a word is from one that was probably meant, for
// messages about names that nobody knows.
package spelling
