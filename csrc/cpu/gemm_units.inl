// A grouped product, unit by unit, to the output.

inline void multiply_grouped(const GroupedGemm& p) {
  PackedRows rows(p);
  rows.place(shared_scratch(rows.bytes()));
  // The overlap signal and scales of the output count whole blocks.
  const bool whole = p.signal.data != nullptr || p.out.scale != nullptr;
  const Schedule schedule(p, whole ? kBlockN : few_columns(p, kUnitRows), kUnitRows);
  const int64_t run = rows_per_run(rows.bytes_per_row());
  auto pack = [&](int64_t i) { rows.write(i * run, std::min(rows.count(), (i + 1) * run)); };
  auto multiply = [&](int64_t i) {
    const Unit unit = schedule.at(i);
    const Group& g = *unit.group;
    const int64_t floats = unit_floats(p, unit);
    auto* buffer = static_cast<float*>(scratch((floats + unit.rows * kLdc) * sizeof(float)));
    float* c = buffer + floats;
    unit_sums(p, rows, unit, buffer, c);
    for (int64_t m = 0; m < unit.rows; ++m) {
      const int64_t i = unit.row_first + m;
      const int64_t row = g.rows != nullptr ? g.rows[i] : g.first + i;
      finish_row(p, g, row, unit.col_first, unit.cols, c + m * kLdc);
    }
    finish_unit(p, unit);
  };
  parallel_steps(p.num_threads, items(ceil_div(rows.count(), run), pack),
                 items(schedule.size(), multiply));
}
