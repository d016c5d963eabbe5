#pragma once
int different(int count, char **words);
