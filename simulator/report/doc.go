// Package report says what runs brought forth: figures of each policy as table,
// CSV or JSON, and plots as SVG or PNG. Figures are made of a replay's report;
// plots are made of plain series, whoever measured them.
package report
