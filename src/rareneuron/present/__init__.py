"""What a run looks like: figures and a report. Reads run folders, computes no science of its own."""
