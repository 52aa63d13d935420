// A grouped product, unit by unit, to the output.

// The packing of rows of A as items of work.
struct Packing {
  const PackedRows& rows;
  int64_t run;

  explicit Packing(const PackedRows& rows) : rows(rows), run(rows_per_run(rows.bytes_per_row())) {}
  int64_t size() const { return ceil_div(rows.count(), run); }
  void operator()(int64_t i) const { rows.write(i * run, std::min(rows.count(), (i + 1) * run)); }
};

inline void multiply_grouped(const GroupedGemm& p) {
  PackedRows rows(p);
  rows.place(shared_scratch(rows.bytes()));
  // The overlap signal and scales of the output count whole blocks.
  const bool whole = p.signal.data != nullptr || p.out.scale != nullptr;
  const Schedule schedule(p, whole ? kBlockN : few_columns(p, kUnitRows), kUnitRows);
  const Packing pack(rows);
  auto multiply = [&](int64_t i) {
    const Unit unit = schedule.at(i);
    const Group& g = *unit.group;
    const int64_t floats = unit_floats(p, unit);
    auto* buffer = static_cast<float*>(scratch((floats + unit.rows * kLdc) * sizeof(float)));
    float* c = buffer + floats;
    unit_sums(p, rows, unit, buffer, c, packed_start_after(p, schedule, i));
    for (int64_t m = 0; m < unit.rows; ++m) {
      finish_row(p, g, row_of(g, unit.row_first + m), unit.col_first, unit.cols, c + m * kLdc);
    }
    finish_unit(p, unit);
  };
  parallel_steps(p.num_threads, items(pack.size(), pack), items(schedule.size(), multiply));
}
